"""The living review: papers of the field, the fronts they form, and our reruns of their claims."""
