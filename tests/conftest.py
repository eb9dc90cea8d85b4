"""What every test shares: a busy machine is no failed property, so hypothesis sets no deadline for an example."""

from hypothesis import settings

settings.register_profile("switchyard", deadline=None)
settings.load_profile("switchyard")
