/* A disk that forgets what was not flushed. Preloaded into a broker, it copies each file of its data directory (TAP_DATA)
   to TAP_DISK whenever that file was flushed, before the broker learns of it, and removes from there what was unlinked
   when the directory was flushed. TAP_DISK is then what a power cut at that instant may have left. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The directory was flushed: what was unlinked from it is gone for good. */
static void forget(const char *data, const char *disk) {
    char path[8192];
    struct dirent *entry;
    DIR *kept = opendir(disk);
    if (!kept) abort();
    while ((entry = readdir(kept))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", data, entry->d_name);
        if (!access(path, F_OK)) continue;
        snprintf(path, sizeof path, "%s/%s", disk, entry->d_name);
        if (unlink(path)) abort();
    }
    closedir(kept);
}

static void keep(int fd) {
    char link[64], path[4096], from[32], part[8192], copy[8192];
    const char *data = getenv("TAP_DATA"), *disk = getenv("TAP_DISK");
    if (!data || !disk) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    size_t prefix = strlen(data);
    if (strncmp(path, data, prefix)) return;
    if (!path[prefix]) {
        forget(data, disk);
        return;
    }
    if (path[prefix] != '/') return;
    const char *name = path + prefix + 1;
    if (!*name || strchr(name, '/')) return;
    snprintf(part, sizeof part, "%s/.part", disk);
    snprintf(copy, sizeof copy, "%s/%s", disk, name);
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    int in = open(from, O_RDONLY), out = open(part, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    static char block[1 << 20];
    ssize_t got;
    if (in < 0 || out < 0) abort();
    while ((got = read(in, block, sizeof block)) > 0)
        if (write(out, block, (size_t)got) != got) abort();
    close(in);
    close(out);
    if (rename(part, copy)) abort();
}

static int flush(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    int result = real(fd);
    int error = errno;
    if (!result) keep(fd);
    errno = error;
    return result;
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }
