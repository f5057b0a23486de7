"""The builtin components: their backend, schemas, and the code of `/openai` and `/load_file`."""
