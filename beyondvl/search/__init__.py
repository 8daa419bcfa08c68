"""Finding the nearest of many embeddings."""
