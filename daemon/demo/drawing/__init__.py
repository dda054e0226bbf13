"""The pencils of the demo's scenes: a pinhole camera, a canvas with depth, and one file for each kind of thing."""
