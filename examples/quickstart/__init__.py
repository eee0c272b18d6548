"""The first five minutes: real models trained on real data, deployed, and asked over every protocol."""
