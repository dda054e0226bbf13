"""Find the files of the drop folder that are new and no longer change."""
