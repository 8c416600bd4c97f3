"""The five claims on trial, each in the regime that decides it: a file a claim."""
