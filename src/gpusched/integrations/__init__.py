"""Where plans and policies meet other software: engine plug-ins, exporters."""
