import { loadConfig } from '../../packages/server/src/config/index.ts'

/** Where a server of this user keeps images by default: tests share it, so that images are built once. */
export function imagesDir(): string {
  return loadConfig({ env: {}, cwd: '/' }).config.images_dir
}
