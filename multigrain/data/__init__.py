"""Video-sentence pairs. Each module is imported by name and asks for its own extra when it is used."""
