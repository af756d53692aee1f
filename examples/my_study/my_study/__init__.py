"""Does a cap on the pull of guidance allow higher scales?"""
