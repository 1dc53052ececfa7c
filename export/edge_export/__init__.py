"""What happens on the workstation: train, prune, distil, quantise, trace, bundle. torch lives only here."""
