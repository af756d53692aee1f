"""How the embedded models, their references and their pictures were made. No part of the package: run from a checkout."""
