"""Look at frames through versions: the observer's answers, and the pictures that the page shows of them."""
