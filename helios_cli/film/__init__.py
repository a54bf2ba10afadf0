"""What is written: the growing film, its journal, its record, kept chunks, and ffmpeg around them."""
