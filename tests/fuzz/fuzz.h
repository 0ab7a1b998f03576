/* What the fuzz targets share: the function that libFuzzer calls, and a check whose failure is a finding in every build. */
#ifndef COVEY_TESTS_FUZZ_H
#define COVEY_TESTS_FUZZ_H

#include "proto/core/core.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define must(condition) do { if (!(condition)) { fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); abort(); } } while (0)
/* A decoder that refuses says why. */
#define must_tell(err) must((err).code != STATUS_OK && (err).text[0] != '\0')

#endif
