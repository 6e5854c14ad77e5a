"""What goes wrong around a batch: processes killed, disks full, clocks wrong, files broken or hostile."""
