"""The labelled source images, once imported."""
