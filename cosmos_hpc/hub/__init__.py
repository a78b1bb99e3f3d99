"""Published files on the Hub: what a recipe needs of them, and fetching it."""
