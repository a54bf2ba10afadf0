"""Writes and reads films: the growing film, its journal and record, the cache of chunks, and ffmpeg."""
