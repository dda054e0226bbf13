"""Keep parts and processes running; nothing here depends on images."""
