"""The command `vlm-posttrain`: everything that one runs, under one name, from any folder. Uses all other rooms."""
