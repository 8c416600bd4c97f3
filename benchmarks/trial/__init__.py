"""The article's five claims on trial: `claims` over `problems` over `protocol`, called by `run`."""
