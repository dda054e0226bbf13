"""Videos as image files, made by a process of their own: ingest takes these like any others."""
