"""HDF5 files: a walker that follows hard links only, and the datasets it finds."""
