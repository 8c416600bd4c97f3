"""The article's claims on trial: `claims` over `problems` over `protocol`, called by `run`."""
