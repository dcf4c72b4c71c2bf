"""What `data check` sees in a file beside whether it can be decoded: an image that shows nothing, or not what it was."""
