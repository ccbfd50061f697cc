"""One command per file (or one noun with its verbs); each is loaded only when it is called."""
