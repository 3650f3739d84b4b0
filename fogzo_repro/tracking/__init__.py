"""What a run says while it goes: metrics, timing, progress, the machine it runs on."""
