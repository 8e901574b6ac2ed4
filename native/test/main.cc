#include "test/test.h"

int main(int argc, char** argv) { return replpage::test::run_tests(argc > 1 ? argv[1] : nullptr); }
