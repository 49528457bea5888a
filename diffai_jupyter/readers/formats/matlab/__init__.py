"""MATLAB files of versions 4, 5 and 7.3."""
