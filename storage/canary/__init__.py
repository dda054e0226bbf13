"""Canary images: a few labelled target images that decide about candidates and are never trained on."""
