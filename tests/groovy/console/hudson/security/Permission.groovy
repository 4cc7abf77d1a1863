package hudson.security

class Permission {
    final String id

    Permission(String id) {
        this.id = id
    }
}
