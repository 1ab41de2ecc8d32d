"""From a folder of pictures to checked samples in buckets. Importing this loads nothing heavy."""
