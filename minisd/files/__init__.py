"""Reading weights files that strangers made: names, shapes and places, and nothing is ever run."""
