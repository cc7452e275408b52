# Stop before a recipe runs if the path of this checkout cannot be used safely.
#
# Make, shells, PATH and the first line of a script split or expand these characters. Spaces,
# parentheses and letters beyond ASCII are fine: no target and no recipe contains the path.
empty :=
tab := $(empty)	$(empty)
define newline


endef
UNSAFE_CHARACTERS := " ' ` $$ \ : ; % * ? [ ] | < > \#
unsafe := $(foreach character,$(UNSAFE_CHARACTERS),$(findstring $(character),$(CURDIR)))
unsafe += $(if $(findstring $(newline),$(CURDIR)),newline) $(if $(findstring $(tab),$(CURDIR)),tab)
ifneq (,$(if $(strip $(unsafe)),found))
$(error the path of this checkout contains $(strip $(unsafe)): \
  move the checkout to a path without $(UNSAFE_CHARACTERS) and line breaks)
endif
