"""One machine's part of the mesh: model processes, artifacts, probation, and the agent that decides and acts."""
