"""What both HTTP servers share: addresses, TLS, tokens, connections."""
