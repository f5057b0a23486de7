"""Routes: `table` resolves component paths, `patterns` matches them, `stored` is the form in the store. Pure."""
