"""Results as an HTML page, as tables of documents, and set side by side."""
