"""HTTP below the views: server, callers, schemas, refusals."""
