import { defineConfig } from 'vitest/config'

export default defineConfig({
  test: {
    include: ['packages/*/src/**/*.test.ts', 'test/**/*.test.ts'],
    // Images are built once, before the tests that start sandboxes from them.
    globalSetup: ['scripts/build-images.ts'],
    // Tests start real servers, containers and registries; the machines that they run on are often small.
    testTimeout: 60_000,
    hookTimeout: 120_000,
    teardownTimeout: 30_000,
    maxWorkers: 2,
  },
})
