"""`threads`: how many threads train on a CPU, and how they wait for each other where others use the cores too."""
