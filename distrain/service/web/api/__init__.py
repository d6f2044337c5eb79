"""The REST interface below `/api/v1`: a router for each subject."""
