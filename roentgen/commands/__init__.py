"""The commands, one module each: functions of their flags, light until they run."""
