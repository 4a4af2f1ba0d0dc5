"""What this machine has and lacks: installed software, GPUs, and a trial of each provider on a tiny graph."""
