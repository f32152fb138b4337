"""Oracle success, likelihood probes and what else can be measured; worlds and models come as arguments."""
