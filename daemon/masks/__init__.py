"""Masks as files beside the images of the drop folder."""
