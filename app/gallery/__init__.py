"""The painted pictures: files, their recipes, the index that is searched, stars."""
