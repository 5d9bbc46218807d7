"""An engine in a process of its own: what breaks there takes nothing else along."""
