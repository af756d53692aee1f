"""What tests of several rooms share: tiny models and pictures, sweeps on disk, settings of small jobs. One of each."""
