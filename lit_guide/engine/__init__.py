"""What carries the story: nobody has to edit it, and it never imports what is above it."""
