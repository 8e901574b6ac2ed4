{
  'variables': {
    # address or thread: see scripts/build.mjs.
    'sanitizer%': '',
    'core_sources': '<!(node scripts/native-sources.mjs native/core)',
    'binding_sources': '<!(node scripts/native-sources.mjs native/binding)',
    'keeper_sources': '<!(node scripts/native-sources.mjs native/keeper)',
    'pager_sources': '<!(node scripts/native-sources.mjs native/pager)',
    # libcrypto has 16,000 pointers that the loader must set at every start: packed, and without two
    # more libraries to look through, a program starts no later than without it (0.5 ms otherwise).
    'quick_start': ['-Wl,-z,pack-relative-relocs', '-static-libstdc++', '-static-libgcc'],
    'test_sources': '<!(node scripts/native-sources.mjs native/test)',
  },
  'target_defaults': {
    'include_dirs': ['native'],
    'cflags!': ['-fno-omit-frame-pointer'],
    'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
    'cflags_cc': ['-std=c++20', '-fexceptions', '-frtti'],
    'cflags': ['-g', '-fPIC', '-Wall', '-Wextra', '-Werror', '-pthread'],
    'ldflags': ['-pthread'],
    'configurations': {
      'Release': {'cflags!': ['-O3'], 'cflags': ['-O2']},
    },
    'conditions': [
      ['sanitizer!=""', {
        'cflags': ['-fsanitize=<(sanitizer)', '-fno-omit-frame-pointer'],
        'ldflags': ['-fsanitize=<(sanitizer)'],
      }],
      ['sanitizer=="address"', {
        'cflags': ['-fsanitize=undefined'],
        'ldflags': ['-fsanitize=undefined'],
      }],
    ],
  },
  'targets': [
    {
      'target_name': 'core',
      'type': 'static_library',
      'sources': ['<!@(node scripts/native-sources.mjs native/core)'],
      # Inside what is linked: it runs where only the C and C++ libraries are installed.
      'link_settings': {'libraries': ['-l:libssl.a', '-l:libcrypto.a', '-l:liblz4.a']},
    },
  ],
  'conditions': [
    ['binding_sources!=""', {
      'targets': [{
        'target_name': 'replpage',
        'dependencies': [
          'core',
          '<!(node -p "require(\'node-addon-api\').targets"):node_addon_api_except',
        ],
        'defines': ['NAPI_VERSION=9', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS'],
        # Node.js has a libcrypto of its own, with the same names, and templates of the C++ library
        # made by another compiler: ours are not to be replaced by them.
        'ldflags': ['-Wl,--exclude-libs,libssl.a:libcrypto.a:liblz4.a', '-Wl,-Bsymbolic-functions'],
        'sources': ['<!@(node scripts/native-sources.mjs native/binding)'],
      }],
    }],
    ['keeper_sources!=""', {
      'targets': [{
        'target_name': 'replpage-keeper',
        'type': 'executable',
        'dependencies': ['core'],
        'sources': ['<!@(node scripts/native-sources.mjs native/keeper)'],
        'conditions': [['sanitizer==""', {'ldflags': ['<@(quick_start)']}]],
      }],
    }],
    ['pager_sources!=""', {
      'targets': [{
        'target_name': 'replpage-pager',
        'type': 'executable',
        'dependencies': ['core'],
        'sources': ['<!@(node scripts/native-sources.mjs native/pager)'],
        'conditions': [['sanitizer==""', {'ldflags': ['<@(quick_start)']}]],
      }],
    }],
    ['test_sources!=""', {
      'targets': [{
        'target_name': 'core_test',
        'type': 'executable',
        'dependencies': ['core'],
        'sources': ['<!@(node scripts/native-sources.mjs native/test)'],
      }],
    }],
  ],
}
